"""The engine, its one Python door and the tables made for it."""
