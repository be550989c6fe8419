"""Tasks of translation: from a language with few sentences into one that all tasks share."""
