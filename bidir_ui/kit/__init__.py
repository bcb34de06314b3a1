"""What every page is built of: HTML, URLs, formats, widgets, the shell, the server."""
