"""Images: convolutions, residual networks, transformers on patches, segmentation, distillation."""

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

from tests.wild.registry import FLIPPED, MOVED, SHIFTED, Refusal, outputs_of, wild
from tests.wild.rows import bits, classes, floats, rows, unit

GRAY = rows(x=unit(1, 8, 8), y=classes(3))
COLOR = rows(x=unit(3, 8, 8), y=classes(3))


class _ImageClassifier(L.LightningModule):
    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)


class _WarmedUp(_ImageClassifier):
    """AdamW, whose rate rises over the first thousand steps."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-4, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 1000))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@wild(GRAY, MOVED, FLIPPED)
class LeNet(_ImageClassifier):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(27, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), start_dim=1))


class _BasicBlock(nn.Module):
    def __init__(self, cin, cout, norm, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False)
        self.bn1, self.bn2 = norm(cout), norm(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride=stride, bias=False), norm(cout))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)


def _resnet(norm):
    return nn.Sequential(
        nn.Conv2d(3, 2, 3, padding=1, bias=False),
        norm(2),
        nn.ReLU(inplace=True),
        _BasicBlock(2, 4, norm, stride=2),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


@wild(
    COLOR,
    MOVED,
    FLIPPED,
    refused=Refusal("the bounds leave the range of the type", "in the range of", impossible=False, late=True),
)
class ResNetFromScratch(_ImageClassifier):
    def __init__(self):
        super().__init__()
        self.backbone, self.fc = _resnet(nn.BatchNorm2d), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.backbone(x))


@wild(
    COLOR,
    MOVED,
    FLIPPED,
    refused={MOVED: Refusal("the bounds leave the range of the type", "in the range of", impossible=False, late=True)},
)
class GroupNormResNet(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone, self.fc = _resnet(lambda c: nn.GroupNorm(2, c)), nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.fc(self.backbone(x)), y, label_smoothing=0.1)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-5, total_steps=1000)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@wild(
    COLOR,
    MOVED,
    FLIPPED,
    outputs_of("feature_extractor"),
    refused={
        outputs_of("feature_extractor"): Refusal(
            "the place of calls is lost beside in-place ones", "names no submodule", located=False, impossible=False
        )
    },
)
class ImagenetTransferLearning(L.LightningModule):
    """A frozen residual network in evaluation mode, and a new head."""

    def __init__(self):
        super().__init__()
        self.feature_extractor = _resnet(nn.BatchNorm2d)
        self.feature_extractor.eval()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        self.feature_extractor.eval()
        with torch.no_grad():
            representations = self.feature_extractor(x).flatten(1)
        return self.classifier(representations)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.classifier.parameters(), lr=1e-3)


@wild(COLOR, FLIPPED, outputs_of("backbone"))
class FrozenBackboneInTrainingMode(L.LightningModule):
    """The backbone is frozen, but its batch statistics are those of the batch."""

    def __init__(self):
        super().__init__()
        self.backbone = _resnet(nn.BatchNorm2d)
        for p in self.backbone.parameters():
            p.requires_grad = False
        self.head = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.head(self.backbone(x)), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), lr=1e-3)


@wild(COLOR, MOVED, FLIPPED)
class FineTuningWithFrozenBatchNorm(_WarmedUp):
    """Everything is trained; batch normalization stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.backbone, self.fc = _resnet(nn.BatchNorm2d), nn.Linear(4, 3)
        for m in self.backbone.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()

    def forward(self, x):
        return self.fc(self.backbone(x))


@wild(GRAY, MOVED, FLIPPED)
class VisionTransformer(_WarmedUp):
    """A class token, learned positions, and `nn.MultiheadAttention`."""

    def __init__(self, dim=6, patch=4, n_patches=4):
        super().__init__()
        self.patch = patch
        self.input_layer = nn.Linear(patch * patch, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.1)
        self.pos_embedding = nn.Parameter(torch.randn(1, 1 + n_patches, dim) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 2)
        self.linear = nn.Sequential(nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, dim))
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3))

    def forward(self, x):
        B, C, H, W = x.shape
        x = x.reshape(B, C, H // self.patch, self.patch, W // self.patch, self.patch)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2, 4)
        x = self.input_layer(x)
        x = torch.cat([self.cls_token.repeat(B, 1, 1), x], dim=1) + self.pos_embedding
        x = x.transpose(0, 1)
        inp = self.norm1(x)
        x = x + self.attn(inp, inp, inp)[0]
        x = x + self.linear(self.norm2(x))
        return self.mlp_head(x[0])


class _TimmBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ls1 = nn.Parameter(1e-1 * torch.ones(dim))
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        out = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)
        x = x + self.proj(out) * self.ls1
        return x + self.mlp(self.norm2(x))


class _TimmViT(nn.Module):
    def __init__(self, dim=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 5, dim))
        self.blocks = nn.Sequential(_TimmBlock(dim, 2))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.norm(self.blocks(x))[:, 0]


@wild(COLOR, MOVED, FLIPPED)
class TimmStyleViT(_WarmedUp):
    def __init__(self):
        super().__init__()
        self.model = _TimmViT()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.model(x))


@wild(COLOR, MOVED, FLIPPED, outputs_of("encoder"))
class LinearProbeOfViT(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = _TimmViT().eval().requires_grad_(False)
        self.probe = nn.Linear(4, 3)
        self.metrics = torchmetrics.MetricCollection(
            {
                "acc": torchmetrics.Accuracy(task="multiclass", num_classes=3),
                "f1": torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro"),
            },
            prefix="train/",
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        with torch.no_grad():
            feats = self.encoder(images)
        logits = self.probe(feats)
        loss = F.cross_entropy(logits, labels)
        self.log_dict(self.metrics(logits.softmax(-1), labels))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.probe.parameters(), lr=0.1)


@wild(COLOR, MOVED, FLIPPED)
class ConvNeXtStyle(_ImageClassifier):
    def __init__(self, dim=4):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 2, stride=2)
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(0.1 * torch.ones(dim))
        self.head = nn.Linear(dim, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean([-2, -1]))


@wild(COLOR, MOVED, FLIPPED)
class SqueezeAndExcitation(_ImageClassifier):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Hardsigmoid()
        )
        self.act = nn.Hardswish()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.depthwise(self.act(self.conv(x))))
        x = x * self.se(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@wild(GRAY, MOVED, FLIPPED)
class MLPMixer(_WarmedUp):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(dim=1))


class _DoubleConv(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU(), nn.Conv2d(cout, cout, 3, padding=1), nn.ReLU()
        )

    def forward(self, x):
        return self.net(x)


@wild(rows(x=unit(1, 8, 8), y=classes(3, 8, 8)), MOVED)
class BilinearUNet(L.LightningModule):
    """Cross entropy of each pixel; upsampling by `nn.Upsample`."""

    def __init__(self):
        super().__init__()
        self.inc, self.down = _DoubleConv(1, 2), nn.Sequential(nn.MaxPool2d(2), _DoubleConv(2, 4))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = _DoubleConv(6, 2)
        self.outc = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.up(self.down(x1))
        diff_h, diff_w = x1.size()[2] - x2.size()[2], x1.size()[3] - x2.size()[3]
        x2 = F.pad(x2, [diff_w // 2, diff_w - diff_w // 2, diff_h // 2, diff_h - diff_h // 2])
        return self.outc(self.conv(torch.cat([x1, x2], dim=1)))

    def training_step(self, batch, batch_idx):
        img, mask = batch
        return F.cross_entropy(self(img), mask.long())

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.9)


def _soft_dice(probs, targets, eps=1.0):
    probs, targets = probs.flatten(1), targets.flatten(1)
    intersection = (probs * targets).sum(1)
    return (1 - (2 * intersection + eps) / (probs.sum(1) + targets.sum(1) + eps)).mean()


@wild(rows(x=unit(1, 6, 6), y=bits(1, 6, 6)), MOVED, FLIPPED)
class DiceSegmentation(L.LightningModule):
    """Binary cross entropy and soft Dice of each image."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 2, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(2, 2, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(2, 1, 1),
        )

    def training_step(self, batch, batch_idx):
        image, mask = batch
        assert image.ndim == 4
        assert mask.max() <= 1.0
        assert mask.min() >= 0
        logits = self.net(image)
        loss = F.binary_cross_entropy_with_logits(logits, mask) + _soft_dice(logits.sigmoid(), mask)
        self.log("iou", ((logits > 0) & (mask > 0.5)).sum() / ((logits > 0) | (mask > 0.5)).sum())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@wild(GRAY, MOVED, FLIPPED)
class FocalLossClassifier(L.LightningModule):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        ce = F.cross_entropy(self.net(x), y, reduction="none")
        pt = torch.exp(-ce)
        return ((1 - pt) ** self.gamma * ce).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(GRAY, MOVED, FLIPPED)
class KnowledgeDistillation(L.LightningModule):
    def __init__(self, temperature=2.0, alpha=0.5):
        super().__init__()
        self.T, self.alpha = temperature, alpha
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        self.teacher.eval()
        for p in self.teacher.parameters():
            p.requires_grad = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            teacher_logits = self.teacher(x)
        student_logits = self.student(x)
        soft = F.kl_div(
            F.log_softmax(student_logits / self.T, dim=1),
            F.softmax(teacher_logits / self.T, dim=1),
            reduction="batchmean",
        )
        hard = F.cross_entropy(student_logits, y)
        return self.alpha * hard + (1 - self.alpha) * self.T**2 * soft

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=1e-2)


@wild(rows(x1=unit(16), x2=unit(16), y=bits()), MOVED)
class SiameseNetwork(L.LightningModule):
    """Contrastive loss of pairs that the data set makes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))

    def training_step(self, batch, batch_idx):
        x1, x2, label = batch
        distance = F.pairwise_distance(self.net(x1), self.net(x2))
        loss = label * distance.pow(2) + (1 - label) * torch.clamp(1.0 - distance, min=0.0).pow(2)
        return loss.mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(xa=floats(6), xp=floats(6), xn=floats(6)), MOVED)
class TripletEmbedding(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.criterion = nn.TripletMarginLoss(margin=1.0)

    def training_step(self, batch, batch_idx):
        anchor, positive, negative = batch
        return self.criterion(self.net(anchor), self.net(positive), self.net(negative))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(6), y=classes(3)), MOVED, FLIPPED)
class CosineFaceClassifier(L.LightningModule):
    """Normalized features against normalized class vectors, with a margin."""

    def __init__(self, s=4.0, m=0.2):
        super().__init__()
        self.s, self.m = s, m
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.weight = nn.Parameter(torch.randn(3, 4))

    def training_step(self, batch, batch_idx):
        x, y = batch
        cosine = F.linear(F.normalize(self.net(x)), F.normalize(self.weight))
        one_hot = F.one_hot(y, 3).float()
        return F.cross_entropy(self.s * (cosine - one_hot * self.m), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(x=unit(1, 4, 4), y=unit(1, 8, 8)), MOVED, SHIFTED)
class SuperResolution(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.PReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.PixelShuffle(2)
        )

    def training_step(self, batch, batch_idx):
        lr_img, hr_img = batch
        sr = self.net(lr_img) + F.interpolate(lr_img, scale_factor=2, mode="nearest")
        loss = F.l1_loss(sr, hr_img)
        self.log("psnr", 10 * torch.log10(1 / F.mse_loss(sr.detach(), hr_img)))
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-4)


@wild(GRAY, MOVED, FLIPPED)
class DropoutCNN(_ImageClassifier):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3)
        self.drop2d, self.drop = nn.Dropout2d(0.25), nn.Dropout(0.5)
        self.fc = nn.Linear(27, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(self.drop(torch.flatten(self.drop2d(x), 1)))


@wild(
    rows(x1=unit(8), x2=unit(8)),
    MOVED,
    refused=Refusal("samples are contrasted with each other", "sample|batch|matmul|mm"),
)
class SimCLR(L.LightningModule):
    def __init__(self, temperature=0.5):
        super().__init__()
        self.net, self.t = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), temperature

    def training_step(self, batch, batch_idx):
        a, b = batch
        feats = self.net(torch.cat([a, b], dim=0))
        cos_sim = F.cosine_similarity(feats[:, None, :], feats[None, :, :], dim=-1)
        self_mask = torch.eye(cos_sim.shape[0], dtype=torch.bool)
        cos_sim.masked_fill_(self_mask, -9e15)
        pos_mask = self_mask.roll(shifts=cos_sim.shape[0] // 2, dims=0)
        cos_sim = cos_sim / self.t
        nll = -cos_sim[pos_mask] + torch.logsumexp(cos_sim, dim=-1)
        return nll.mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@wild(
    rows(x1=unit(8), x2=unit(8)),
    MOVED,
    refused=Refusal("samples are contrasted with each other", "sample|batch"),
)
class CLIPStyle(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)
        self.logit_scale = nn.Parameter(torch.ones([]) * 1.0)

    def training_step(self, batch, batch_idx):
        image, text = batch
        logits = self.logit_scale.exp() * self.a(image) @ self.b(text).t()
        labels = torch.arange(len(image))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
