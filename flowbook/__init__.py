"Diffusion transformers and rectified flow: a book that is a library."
__version__ = "0.0.1"

from flowbook.data import load_data
from flowbook.dit import DiT
from flowbook.dit_llama import DiTLlama
from flowbook.evaluate import evaluate
from flowbook.flow import RectifiedFlow, logit_normal, uniform
from flowbook.guidance import CFG
from flowbook.samplers import sample
from flowbook.train import Trainer
from flowbook.unet import UNet

__all__ = ["load_data", "DiT", "DiTLlama", "UNet", "evaluate",
           "RectifiedFlow", "logit_normal", "uniform", "CFG", "sample",
           "Trainer"]
