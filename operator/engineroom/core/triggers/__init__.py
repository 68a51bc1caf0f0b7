"""Times at which something recurring happens, and the treatment of times that were missed."""
