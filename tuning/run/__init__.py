"""From a folder of clips (or of features) to embeddings, a report and the next command, in one command."""
