"""The one judge: what is a representation worth? Arrays in, plain results out; no torch until a head is trained.

config      every setting, as dataclasses that load nothing but the standard library
protocol    which rows are labelled, trained on, tested, and by whom they are grouped: `Protocol`
features    scaling, fusion and raw features: from modalities to one matrix a system
blocks      shares of the variance: modalities plain, balanced, chosen, beside a representation
judge       `evaluate`: every system by every method at every share of labels; `score` and `compare`
probe       linear probes (solvers: `solvers`);  neighbours, finetune: other methods;  classifiers: by scikit-learn
metrics     scores;  statistics: intervals over groups, paired tests, Holm
health      label-free measures of a representation, and warnings of collapse
"""
