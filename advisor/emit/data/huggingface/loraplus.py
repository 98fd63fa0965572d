"""LoRA+: a learning rate for B that is several times that of A."""

from peft.optimizers import create_loraplus_optimizer


def loraplus_trainer(kind, ratio):
    """`kind`, a trainer, with LoRA+'s optimizer. `ratio`: B's learning rate over A's."""

    class LoraPlusTrainer(kind):
        def create_optimizer(self, *args, **kwargs):
            """The optimizer of the training arguments over PEFT's groups of parameters."""
            if self.optimizer is None:
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = create_loraplus_optimizer(self.model, kind, loraplus_lr_ratio=ratio, **options)
            return self.optimizer

    return LoraPlusTrainer
