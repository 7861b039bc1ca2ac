"""Two models of transformers: specsample's loop, and model.generate with specsample inside.

    python examples/with_transformers.py [target] [draft]

Hub names or paths; by default SmolLM2-360M and SmolLM2-135M, a download of about 1 GB.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import specsample as ss
from specsample.integrations import transformers as inside

target_name, draft_name = sys.argv[1:3] if len(sys.argv) == 3 else ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-135M")
tokenizer = AutoTokenizer.from_pretrained(target_name)
target = AutoModelForCausalLM.from_pretrained(target_name)
draft = AutoModelForCausalLM.from_pretrained(draft_name)
inputs = tokenizer("Speculative decoding is", return_tensors="pt")

# specsample's loop. `print(stats)` shows how many drafts were accepted at each position, and where the time went.
settings = {"max_new_tokens": 40, "sampling": ss.Sampling(temperature=0.8, top_p=0.95), "seed": 1}
text, stats = ss.generate(target, draft, inputs.input_ids, scheme="block", return_stats=True, **settings)
print(tokenizer.decode(text[0]), stats, sep="\n")

# Under `race` the drafts decide how long it takes, never the text: it is the same without any. (In float32 a model may round
# differently for one token per call than for several, and then a tie may go the other way.)
plain = ss.generate(target, None, inputs.input_ids, **settings)
drafted = ss.generate(target, ss.NgramDrafter(), inputs.input_ids, scheme="race", **settings)
print("race gives the text of plain sampling:", plain.equal(drafted))

# Inside model.generate, with the settings of its GenerationConfig.
text = target.generate(
    **inputs, custom_generate=inside.generate, draft=draft, seed=1, do_sample=True, temperature=0.8, max_new_tokens=40
)  # fmt: skip
print(tokenizer.decode(text[0]))
