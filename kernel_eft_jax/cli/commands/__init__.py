"""One file a command: `run` takes the arguments, calls the library and writes what it finds."""
