"""What would the answer be if the predictor saw something else? `python examples/what_if.py runs/ifam`.

Without a model, one with the embedded backbone and an untrained head is used: it shows the calls, not a result.
"""

import sys

import torch

import ifam

if len(sys.argv) > 1:
    model = ifam.IFAM.from_pretrained(sys.argv[1])
else:
    torch.manual_seed(0)
    model = ifam.IFAM(ifam.ModelConfig(backbone="ifam_tiny", num_parts=3)).eval()
birds = ifam.load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 4}).split("test")
batch = model.prepare_batch(birds)

parts = range(model.config.num_parts)
everything = torch.ones(model.selector.backbone.grid, dtype=torch.bool)
questions: dict[str, list] = {
    "as it is": [],
    **{f"without part {k}": [ifam.DropParts([k])] for k in parts},
    **{f"part {k} alone": [ifam.KeepParts([k])] for k in parts},
    "everything visible": [ifam.UseMask(everything)],
    "nothing visible": [ifam.UseMask(~everything)],
}
with torch.inference_mode():
    for question, interventions in questions.items():
        out = model(batch.images, interventions)
        # The answer is that of the predictor to the new mask: nothing else reaches it.
        assert out.logits.equal(model.predictor(batch.images, out.mask))
        shown, answers = out.visible_fraction.mean(), out.logits.argmax(dim=1).tolist()
        print(f"{question:<20} {shown:4.0%} visible, answers {answers}")
