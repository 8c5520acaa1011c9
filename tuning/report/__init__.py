"""`python -m tuning.report`: what an ablation and its sweeps came to, as a page, tables and pictures."""
