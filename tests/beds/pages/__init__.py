"""Pages as tests read them: their blocks, and a shell that runs a page's commands in namespaces of its own."""
