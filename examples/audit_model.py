"""Does any hidden pixel change an answer? `python examples/audit_model.py runs/ifam` (exit status 1 if one does).

Without a model, one with the embedded backbone and an untrained head is audited: that hidden pixels do not matter is
a property of the code, not of the training.
"""

import sys

import torch

import ifam

if len(sys.argv) > 1:
    model = ifam.IFAM.from_pretrained(sys.argv[1])
else:
    torch.manual_seed(0)
    model = ifam.IFAM(ifam.ModelConfig(backbone="ifam_tiny", image_size=80, num_parts=3)).eval()
birds = ifam.load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 4})
result = ifam.audit(model, birds, split="test", explain=1)  # a tensor of normalized images will do, too

print(result.verdict)
for certificate in (result.certificate, *result.baselines):
    worst = max(figures.changed_answers for figures in certificate.attacks)
    print(f"{certificate.name:<12} answers changed by the worst attack: {worst:.0%}")
sys.exit(0 if result.passed else 1)
