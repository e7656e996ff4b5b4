"""Files of a version: manifest pages and how a commit merges into them."""
