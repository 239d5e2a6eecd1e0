"""The public list of everything that a recipe can name: kind, name, and where it lives.

A name that is not listed here can still be used by reference, ``my_package.my_module:MyTechnique``.
Nothing is imported before it is asked for, so this list costs nothing.
"""

from __future__ import annotations

import importlib
import os
import sys

from kingpost.errors import RecipeError, nearest

CATALOGUE: dict[str, dict[str, str]] = {
    "data": {
        "arrays": "kingpost.data.arrays:Arrays",
        "npz": "kingpost.data.arrays:Npz",
        "digits": "kingpost.data.bundled:Digits",
        "bundled": "kingpost.data.bundled:Bundled",
        "table": "kingpost.data.tables:Table",
        "idx": "kingpost.data.images:Idx",
        "image-folder": "kingpost.data.images:ImageFolder",
        "text": "kingpost.data.text:Text",
        "sentence-pairs": "kingpost.data.text:SentencePairs",
        "text-lines": "kingpost.data.labelled_text:TextLines",
        "series": "kingpost.data.series:Series",
        "moving-images": "kingpost.data.clips:MovingImages",
        "audio-npz": "kingpost.data.audio:AudioNpz",
        "loaders": "kingpost.data.loaders:Loaders",
        "graph-npz": "kingpost.data.graphs:GraphNpz",
        "graphs": "kingpost.data.graphs:Graphs",
        "tu-graphs": "kingpost.data.graphs:TuGraphs",
    },
    "task": {
        "classification": "kingpost.train.tasks:Classification",
        "regression": "kingpost.train.tasks:Regression",
        "language-modelling": "kingpost.train.tasks:LanguageModelling",
        "multi-label": "kingpost.train.tasks:MultiLabel",
        "multi-task": "kingpost.train.multi_task:MultiTask",
        "sequence-to-sequence": "kingpost.train.sequence_to_sequence:SequenceToSequence",
        "forecasting": "kingpost.train.forecasting:Forecasting",
        "simclr": "kingpost.train.pretrain.contrast:SimCLR",
        "vicreg": "kingpost.train.pretrain.contrast:VICReg",
        "masked-tokens": "kingpost.train.pretrain.masked:MaskedTokens",
        "masked-columns": "kingpost.train.pretrain.masked:MaskedColumns",
        "masked-image": "kingpost.train.pretrain.masked:MaskedImage",
        "denoise": "kingpost.train.pretrain.masked:Denoise",
    },
    "model": {
        "mlp": "kingpost.build.nets.mlp:MLP",
        "cnn": "kingpost.build.nets.cnn:CNN",
        "resnet": "kingpost.build.nets.resnet:ResNet",
        "densenet": "kingpost.build.nets.densenet:DenseNet",
        "inception": "kingpost.build.nets.inception:Inception",
        "gpt": "kingpost.build.nets.gpt:GPT",
        "capsule": "kingpost.build.nets.capsule:Capsule",
        "rule": "kingpost.build.nets.rule:Rule",
        "multi-task": "kingpost.build.nets.multi_task:MultiTaskTrunk",
        "moe": "kingpost.build.nets.moe:MoE",
        "encoder": "kingpost.build.nets.encoder:Encoder",
        "transformer": "kingpost.build.nets.transformer:Transformer",
        "vit": "kingpost.build.nets.vit:ViT",
        "gnn": "kingpost.build.nets.gnn:GNN",
        "recurrent": "kingpost.build.nets.recurrent:RNN",
        "recurrent-lm": "kingpost.build.nets.recurrent_lm:RecurrentLM",
        "seq2seq": "kingpost.build.nets.seq2seq:Seq2Seq",
        "cnn-rnn": "kingpost.build.nets.clips:CNNRNN",
        "cnn-transformer": "kingpost.build.nets.clips:CNNTransformer",
        "timm": "kingpost.build.nets.libraries:Timm",
        "transformers": "kingpost.build.nets.libraries:Transformers",
        "hub": "kingpost.build.nets.libraries:Hub",
    },
    "initialise": {
        "naive-normal": "kingpost.build.initialise.naive:NaiveNormal",
        "naive-uniform": "kingpost.build.initialise.naive:NaiveUniform",
        "truncated-normal": "kingpost.build.initialise.naive:TruncatedNormal",
        "xavier": "kingpost.build.initialise.scaled:Xavier",
        "he": "kingpost.build.initialise.scaled:He",
        "auto": "kingpost.build.initialise.auto:Auto",
        "orthogonal": "kingpost.build.initialise.orthogonal:Orthogonal",
        "delta-orthogonal": "kingpost.build.initialise.orthogonal:DeltaOrthogonal",
        "sparse": "kingpost.build.initialise.sparse:Sparse",
        "identity": "kingpost.build.initialise.identity:Identity",
        "zero": "kingpost.build.initialise.identity:ZerO",
        "skipinit": "kingpost.build.initialise.residual:SkipInit",
        "fixup": "kingpost.build.initialise.residual:Fixup",
        "zero-last-norm": "kingpost.build.initialise.residual:ZeroLastNorm",
        "lsuv": "kingpost.build.initialise.lsuv:LSUV",
        "weights-file": "kingpost.build.initialise.weights_file:WeightsFile",
    },
    "optimizer": {
        "sgd": "kingpost.train.optimise.sgd:SGD",
        "adamw": "kingpost.train.optimise.adam:AdamW",
        "adam": "kingpost.train.optimise.adam:Adam",
        "nadam": "kingpost.train.optimise.adam:NAdam",
        "radam": "kingpost.train.optimise.adam:RAdam",
        "adagrad": "kingpost.train.optimise.adaptive:Adagrad",
        "adadelta": "kingpost.train.optimise.adaptive:Adadelta",
        "rmsprop": "kingpost.train.optimise.adaptive:RMSprop",
        "adafactor": "kingpost.train.optimise.adaptive:Adafactor",
        "lion": "kingpost.train.optimise.lion:Lion",
        "lars": "kingpost.train.optimise.trust:LARS",
        "lamb": "kingpost.train.optimise.trust:LAMB",
        "adan": "kingpost.train.optimise.adan:Adan",
        "muon": "kingpost.train.optimise.muon:Muon",
        "schedule-free-sgd": "kingpost.train.optimise.schedule_free:ScheduleFreeSGD",
        "schedule-free-adamw": "kingpost.train.optimise.schedule_free:ScheduleFreeAdamW",
        "shampoo": "kingpost.train.optimise.shampoo:Shampoo",
        "soap": "kingpost.train.optimise.soap:SOAP",
        "adahessian": "kingpost.train.optimise.second_order:AdaHessian",
        "sophia": "kingpost.train.optimise.second_order:Sophia",
        "kfac": "kingpost.train.optimise.kfac:KFAC",
        "lbfgs": "kingpost.train.optimise.lbfgs:LBFGS",
        "learned": "kingpost.train.optimise.learned:Learned",
    },
    "schedule": {
        "constant": "kingpost.train.optimise.schedules:Constant",
        "cosine": "kingpost.train.optimise.schedules_decay:Cosine",
        "polynomial": "kingpost.train.optimise.schedules_decay:Polynomial",
        "exponential": "kingpost.train.optimise.schedules_decay:Exponential",
        "inverse-root": "kingpost.train.optimise.schedules_decay:InverseRoot",
        "warmup-stable-decay": "kingpost.train.optimise.schedules_decay:WarmupStableDecay",
        "step-decay": "kingpost.train.optimise.schedules_drops:StepDecay",
        "multi-step": "kingpost.train.optimise.schedules_drops:MultiStep",
        "one-cycle": "kingpost.train.optimise.schedules_cycles:OneCycle",
        "cyclic": "kingpost.train.optimise.schedules_cycles:Cyclic",
        "cosine-restarts": "kingpost.train.optimise.schedules_cycles:CosineRestarts",
        "on-plateau": "kingpost.train.optimise.schedules_plateau:OnPlateau",
    },
    "technique": {
        "label-smoothing": "kingpost.train.regularise.label_smoothing:LabelSmoothing",
        "l2": "kingpost.train.regularise.l2:L2",
        "l0": "kingpost.train.regularise.l0:L0",
        "l1": "kingpost.train.regularise.l1:L1",
        "elastic-net": "kingpost.train.regularise.l1:ElasticNet",
        "group-lasso": "kingpost.train.regularise.group_lasso:GroupLasso",
        "orthogonal-penalty": "kingpost.train.regularise.orthogonal:OrthogonalPenalty",
        "max-norm": "kingpost.train.regularise.max_norm:MaxNorm",
        "drop-connect": "kingpost.train.regularise.changed_weights:DropConnect",
        "spectral-norm": "kingpost.train.regularise.spectral_norm:SpectralNorm",
        "weight-standardisation": "kingpost.train.regularise.weight_standardisation:WeightStandardisation",
        "gradient-penalty": "kingpost.train.regularise.gradient_penalty:GradientPenalty",
        "jacobian-penalty": "kingpost.train.regularise.gradient_penalty:JacobianPenalty",
        "weight-noise": "kingpost.train.regularise.changed_weights:WeightNoise",
        "margin-loss": "kingpost.train.objectives.margin:MarginLoss",
        "focal-loss": "kingpost.train.objectives.focal:FocalLoss",
        "poly-loss": "kingpost.train.objectives.focal:PolyLoss",
        "class-weights": "kingpost.train.objectives.class_weights:ClassWeights",
        "balanced-sampling": "kingpost.train.balanced_sampling:BalancedSampling",
        "confidence-penalty": "kingpost.train.objectives.confidence:ConfidencePenalty",
        "generalised-cross-entropy": "kingpost.train.objectives.noisy_labels:GeneralisedCrossEntropy",
        "bootstrapping": "kingpost.train.objectives.noisy_labels:Bootstrapping",
        "reconstruction": "kingpost.build.reconstruction:Reconstruction",
        "uncertainty-weights": "kingpost.train.objectives.uncertainty:UncertaintyWeights",
        "gradnorm": "kingpost.train.objectives.gradnorm:GradNorm",
        "dropout": "kingpost.train.regularise.dropout:Dropout",
        "channel-dropout": "kingpost.train.regularise.channel_dropout:ChannelDropout",
        "drop-block": "kingpost.train.regularise.channel_dropout:DropBlock",
        "attention-dropout": "kingpost.build.dropping:AttentionDropout",
        "stochastic-depth": "kingpost.build.dropping:StochasticDepthRule",
        "mixup": "kingpost.train.augment.mixup:Mixup",
        "flip": "kingpost.train.augment.images:Flip",
        "crop": "kingpost.train.augment.images:Crop",
        "rotate": "kingpost.train.augment.geometry:Rotate",
        "affine": "kingpost.train.augment.geometry:Affine",
        "colour": "kingpost.train.augment.colour:Colour",
        "rand-augment": "kingpost.train.augment.rand_augment:RandAugment",
        "cutmix": "kingpost.train.augment.cutmix:CutMix",
        "cutout": "kingpost.train.augment.erase:Cutout",
        "random-erasing": "kingpost.train.augment.erase:RandomErasing",
        "gaussian-blur": "kingpost.train.augment.blur:GaussianBlur",
        "gaussian-noise": "kingpost.train.augment.noise:GaussianNoise",
        "token-dropout": "kingpost.train.augment.tokens:TokenDropout",
        "word-swap": "kingpost.train.augment.tokens:WordSwap",
        "unigram-noise": "kingpost.train.augment.tokens:UnigramNoise",
        "jitter": "kingpost.train.augment.series:Jitter",
        "scaling": "kingpost.train.augment.series:Scaling",
        "time-warp": "kingpost.train.augment.series:TimeWarp",
        "window-slice": "kingpost.train.augment.series:WindowSlice",
        "spec-augment": "kingpost.train.augment.spec_augment:SpecAugment",
        "feature-noise": "kingpost.train.augment.tables:FeatureNoise",
        "feature-swap": "kingpost.train.augment.tables:FeatureSwap",
        "fgsm": "kingpost.train.adversarial.pgd:FGSM",
        "pgd": "kingpost.train.adversarial.pgd:PGD",
        "free-adversarial": "kingpost.train.adversarial.free:FreeAdversarial",
        "trades": "kingpost.train.adversarial.trades:Trades",
        "virtual-adversarial": "kingpost.train.adversarial.virtual:VirtualAdversarial",
        "clip": "kingpost.train.gradients.clip:Clip",
        "clip-value": "kingpost.train.gradients.clip:ClipValue",
        "clip-per-layer": "kingpost.train.gradients.clip:ClipPerLayer",
        "agc": "kingpost.train.gradients.agc:AGC",
        "centralise": "kingpost.train.gradients.centralise:Centralise",
        "gradient-noise": "kingpost.train.gradients.noise:GradientNoise",
        "gradient-normalise": "kingpost.train.gradients.normalise:GradientNormalise",
        "batch-ramp": "kingpost.train.gradients.batch_ramp:BatchRamp",
        "checkpoint-activations": "kingpost.train.gradients.checkpoint_activations:CheckpointActivations",
        "accumulate": "kingpost.train.gradients.accumulate:Accumulate",
        "sam": "kingpost.train.regularise.sam:SAM",
        "asam": "kingpost.train.regularise.sam:ASAM",
        "ema": "kingpost.train.regularise.ema:EMA",
        "swa": "kingpost.train.regularise.swa:SWA",
        "snapshots": "kingpost.train.ensemble.snapshots:Snapshots",
        "swag": "kingpost.train.ensemble.swag:SWAG",
        "batch-ensemble": "kingpost.train.ensemble.batch_ensemble:BatchEnsemble",
        "early-stopping": "kingpost.train.regularise.early_stopping:EarlyStopping",
        "freeze": "kingpost.train.transfer.freeze:Freeze",
        "linear-probe": "kingpost.train.transfer.freeze:LinearProbe",
        "gradual-unfreezing": "kingpost.train.transfer.unfreezing:GradualUnfreezing",
        "lora": "kingpost.train.transfer.lora:LoRA",
        "bf16": "kingpost.train.precision:BF16",
        "fp16": "kingpost.train.precision:FP16",
        "mu-parametrisation": "kingpost.build.mup:MuParametrisation",
        "channels-last": "kingpost.train.channels_last:ChannelsLast",
        "compile": "kingpost.train.compiled:Compile",
        "lookahead": "kingpost.train.optimise.lookahead:Lookahead",
        "parameter-groups": "kingpost.train.optimise.parameter_groups:ParameterGroups",
        "layerwise-rates": "kingpost.train.optimise.layerwise:LayerwiseRates",
    },
    "layout": {
        "data-parallel": "kingpost.train.parallel:DataParallel",
    },
}

_NAMES = {target: name for kind in CATALOGUE.values() for name, target in kind.items()}


def name_of(cls: type) -> str:
    """The name under which a recipe knows a class: its catalogue name, else ``module:Class``."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    return _NAMES.get(target, target)


def find(kind: str, name: str) -> object:
    """The class (or, by reference, any callable) that ``name`` stands for.

    Args:
        kind: a key of the catalogue, such as ``"optimizer"``.
        name: a catalogue name, or ``module:attribute`` for the user's own.

    Raises:
        RecipeError: the name is unknown (the nearest one is given), or the reference cannot be imported.

    >>> find("schedule", "cosine").__name__
    'Cosine'
    """
    if ":" in name:
        return _imported(name)
    if name not in CATALOGUE[kind]:
        raise RecipeError(
            f"unknown {kind} '{name}'", mend=nearest(name, CATALOGUE[kind]) + "; or your own as module:name"
        )
    return _imported(CATALOGUE[kind][name])


def _imported(reference: str) -> object:
    module_name, _, attribute = reference.partition(":")
    if (here := os.getcwd()) not in sys.path:  # the console script does not put the user's folder on the path
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise RecipeError(
                f"no module '{module_name}' (looked for '{reference}')",
                mend="run from the folder that holds it, or install the package it is in",
            ) from error
        raise
    try:
        found: object = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise RecipeError(
            f"module '{module_name}' has no '{attribute}'",
            mend=nearest(attribute, [n for n in vars(module) if not n.startswith("_")]),
        ) from error
    return found
