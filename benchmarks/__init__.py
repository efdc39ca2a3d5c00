"""Where the README's numbers come from: `make bench`, everything measured in one run on one machine."""
