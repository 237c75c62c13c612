"""Reads expositions with the client library of the Prometheus project.

Standard input is a JSON list of [format, text]; standard output one of what each holds: a list of
[name, sorted labels, value, time], or what the library found wrong. Values are the bits of a
double in hexadecimal, times milliseconds. Labels without a value are left out: they do not exist.
"""
import json
import math
import struct
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text


def bits(value):
    value = float(value)
    return "NaN" if math.isnan(value) else struct.pack(">d", value).hex()


def millis(at):
    return None if at is None else math.floor(float(at) * 1000 + 0.5)


def samples(form, exposition):
    if form == "text":
        # The library renames counters that do not end as those of OpenMetrics; without their
        # types it does not know which they are.
        lines = exposition.split("\n")
        exposition = "\n".join(line for line in lines if not line.startswith("# TYPE"))
    families = openmetrics(exposition) if form == "openmetrics" else text(exposition)
    for family in families:
        for sample in family.samples:
            labels = sorted([name, value] for name, value in sample.labels.items() if value)
            yield [sample.name, labels, bits(sample.value), millis(sample.timestamp)]


def read(form, exposition):
    try:
        return list(samples(form, exposition))
    except Exception as error:  # whatever it throws is its answer
        return "{}: {}".format(type(error).__name__, error)


json.dump([read(form, exposition) for form, exposition in json.load(sys.stdin)], sys.stdout)
