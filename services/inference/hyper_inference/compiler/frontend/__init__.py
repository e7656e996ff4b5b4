"""From files and modules of other frameworks to a graph."""
