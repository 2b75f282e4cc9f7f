"""Studies: runs over arms, settings and seeds, from one file to a table, a picture and a page."""
