# %% accelerate: a loop that is prepared
import torch
from accelerate import Accelerator
def work():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(1, 1)
    model, opt, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.utils.data.DataLoader(torch.arange(4.0).unsqueeze(1), batch_size=1))
    for batch in loader:
        accelerator.backward(model(batch).sum())
        opt.step()
        opt.zero_grad()
    return accelerator.num_processes, len(loader), accelerator.is_main_process
#= kernel: —
#= rank: (2, 2, rank == 0)

# %% transformers: a small model, made from its config
from transformers import BertConfig, BertForSequenceClassification
import torch
config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=16)
def work():
    model = BertForSequenceClassification(config)
    return tuple(model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape)
#= (1, 2)
#= ranks: 1

# %% transformers: the lazy module as a global
import transformers
def work():
    return transformers.BertConfig.model_type, transformers.__name__
#= ("bert", "transformers")
#= ranks: 1

# %% Lightning: a module, trained for a step
import lightning as L
import torch
class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
def work():
    L.seed_everything(1, verbose=False)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", devices=1, strategy="auto", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Plain(), torch.utils.data.DataLoader(torch.ones(2, 1)))
    return trainer.global_step
#= kernel: —
#= rank: 1
#= ranks: 1

# %% torchmetrics
import torch
from torchmetrics import MeanMetric
def work():
    mean = MeanMetric()
    mean.update(torch.tensor([1.0, 3.0]))
    return mean.compute().item()
#= 2.0
#= ranks: 1

# %% safetensors
import torch
from safetensors.torch import load_file, save_file
def work():
    import os
    path = f"tensors-{os.getpid()}.safetensors"
    save_file({"w": torch.ones(2)}, path)
    return load_file(path)["w"].tolist()
#= [1.0, 1.0]
