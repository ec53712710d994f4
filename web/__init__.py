"""The page without a server: its modules, its build and a server to try it."""
