"""`python -m conclugen bench` and `memory`: what a pretraining step costs."""
