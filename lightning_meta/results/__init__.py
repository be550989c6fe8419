"""What runs have left: tables, pages, comparisons."""
