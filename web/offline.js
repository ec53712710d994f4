/** The page goes on without a service worker that takes longer than this. */
const PATIENCE_MILLISECONDS = 3000;

/**
 * Start the service worker. Call it first, and load the model once it has returned: what is fetched
 * after that is kept for the next visit. Returns as well where nothing can be kept: on plain http,
 * in a private window, with a full disk.
 */
export async function keepOffline() {
  const { serviceWorker: container } = navigator;
  if (!container) return;
  try {
    const address = new URL('../sw.js', import.meta.url);
    const registration = await container.register(address, { updateViaCache: 'none' });
    if (!registration.active) await started(container, registration.installing);
  } catch (error) {
    console.info('nothing is kept for the next visit:', error);
  }
}

/**
 * Have the service worker fetch what a visit without a network needs and this one has not used, or
 * has used before the service worker was there.
 * @param {string[]} names of files, relative to the site
 */
export async function keepRest(names) {
  const registration = await navigator.serviceWorker?.ready;
  registration?.active?.postMessage({ keep: names });
}

/**
 * @param {ServiceWorkerContainer} container
 * @param {ServiceWorker | null} worker
 * @returns {Promise<unknown>} done once it answers the page, or will not
 */
function started(container, worker) {
  return new Promise((resolve) => {
    container.addEventListener('controllerchange', resolve, { once: true });
    worker?.addEventListener('statechange', () => worker.state === 'redundant' && resolve(null));
    setTimeout(resolve, PATIENCE_MILLISECONDS);
  });
}
