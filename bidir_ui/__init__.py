"""What the pages share: the shell, URL state, cached readers, inert HTML and widgets."""
