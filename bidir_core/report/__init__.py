"""Reports from runs: sections, tables, charts, HTML, the folder for a paper."""
