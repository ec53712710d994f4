"""The page: an interactive demo of masked autoencoders, on top of `mae_core`.

`python -m app` serves it. Only `__main__`, `ui`, `handlers` and `components` know Gradio;
`service` is the demo without a page.
"""
