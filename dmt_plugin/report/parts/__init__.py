"""What pages and terminal output are made of: HTML, charts, tables, colours."""
