"""Train an elastic classifier on a table of your own, evaluate every sub-network on examples held out, save it.

python examples/train_on_own_data.py tickets.csv --text text --label category --model path/to/encoder
"""

import argparse

import pandas as pd
from datasets import Dataset
from transformers import AutoTokenizer

from limbert import ElasticModel, ElasticTrainer, ElasticTrainingArguments, train

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("table", help="a CSV file with a column of texts and a column of labels")
parser.add_argument("--text", default="text")
parser.add_argument("--label", default="label")
parser.add_argument("--model", required=True, help="pretrained encoder: a folder or a name on the Hub")
parser.add_argument("--output", default="runs/own-data")
parser.add_argument("--recipe", default="limbert")
parser.add_argument("--max-steps", type=int, default=-1, help="per phase, to try the script out")
options = parser.parse_args()

table = pd.read_csv(options.table)[[options.text, options.label]]
table = table.rename(columns={options.text: "text", options.label: "label"})
data = Dataset.from_pandas(table).class_encode_column("label")
labels = data.features["label"].names
data = data.train_test_split(0.2, seed=42, stratify_by_column="label")

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = ElasticModel.from_pretrained(options.model, num_labels=len(labels), id2label=dict(enumerate(labels)))
args = ElasticTrainingArguments(options.output, max_steps=options.max_steps, seed=42, report_to="none")
model = train(model, recipe=options.recipe, args=args, train_dataset=data["train"], processing_class=tokenizer)

metrics = ElasticTrainer(model, args, eval_dataset=data["test"], processing_class=tokenizer).evaluate()
print(f"{len(data['test'])} test examples, {len(labels)} classes")
for name in model.subnets():
    print(f"{name:9} accuracy {100 * metrics[f'eval_{name}/accuracy']:5.1f}")
print(f"saved in {options.output}; next: python examples/choose_and_export.py {options.output}")
