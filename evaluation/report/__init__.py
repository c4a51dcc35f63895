"""One page that compares runs with published numbers: tables, figures, and commands for what is missing."""
