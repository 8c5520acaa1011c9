"""New clips and whole corpora through a run's encoders and its model."""
