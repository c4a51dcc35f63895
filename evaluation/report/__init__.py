"""One page that shows runs beside what was published: tables, figures, what is missing."""
