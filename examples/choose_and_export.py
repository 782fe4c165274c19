"""Measure every sub-network of a run on this machine, choose one by latency and quality, export it, use the export.

python examples/choose_and_export.py runs/tickets --max-latency 5ms --format onnx --text "Where is my card?"
"""

import argparse

from transformers import AutoTokenizer

import limbert

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run", help="a run directory with results on its development set")
parser.add_argument("--max-latency", default="50ms", help="longest median latency of one text")
parser.add_argument("--format", default="onnx", choices=["onnx", "openvino", "hf"])
parser.add_argument("--output", default="exported")
parser.add_argument("--seconds", type=float, default=10.0, help="time for the measurement")
parser.add_argument("--text", default="Where is my card?")
options = parser.parse_args()

limbert.benchmark(options.run, lengths=[32], max_seconds=options.seconds)
best = limbert.choose(options.run, max_latency=options.max_latency).ranked[0]
print(f"chosen: {best.profile.subnet}, {best.profile.latency_p50_ms:.2f} ms, metric {100 * best.metric_value:.1f}")

limbert.export_model(options.run, options.output, subnet=best.profile.subnet, format=options.format)
if options.format == "onnx":  # any program that has ONNX Runtime can do the rest
    import onnxruntime

    session = onnxruntime.InferenceSession(f"{options.output}/model.onnx")
    inputs = AutoTokenizer.from_pretrained(options.output)(options.text, return_tensors="np")
    names = [item.name for item in session.get_inputs()]
    (logits,) = session.run(["logits"], {name: inputs[name] for name in names})
    print(f"logits of {options.text!r}: {logits.round(2)[0][:5]} ...")
