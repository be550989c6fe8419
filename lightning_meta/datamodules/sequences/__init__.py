"""Tasks of next tokens: a piece of music or a document, cut into chunks."""
