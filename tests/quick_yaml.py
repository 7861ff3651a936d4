"""PyYAML by libyaml, in half the time; imported for its effect. Detectron2 reads and writes a config often."""

import yaml

import tcl_d2.checkpoint.model_config  # noqa: F401  (its reader of others' files is PyYAML's own: it is made before)

if yaml.__with_libyaml__:
    yaml.SafeLoader, yaml.SafeDumper = yaml.CSafeLoader, yaml.CSafeDumper
