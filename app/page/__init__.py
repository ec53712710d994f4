"""The page: layout, events and components."""
