"""Tokens: encoders in the manner of transformers, heads on frozen ones, language models, and older networks."""

import math
from types import SimpleNamespace

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

from tests.wild.registry import FLIPPED, MOVED, SHIFTED, Refusal, outputs_of, wild
from tests.wild.rows import bits, classes, floats, lengths, rows, tags

SENTENCES = rows(input_ids=classes(12, 5), attention_mask=lengths(5), y=classes(2))


class _BertEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("position_ids", torch.arange(config.max_position).expand((1, -1)), persistent=False)

    def forward(self, input_ids):
        position_ids = self.position_ids[:, : input_ids.size(1)]
        token_type_ids = torch.zeros_like(input_ids)
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))


class _BertLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, self.heads = config.hidden_size, config.heads
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.output = nn.Linear(d, d)
        self.attention_norm, self.output_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.intermediate, self.dense = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.dropout = nn.Dropout(config.dropout)

    def split(self, x):
        return x.view(x.size(0), x.size(1), self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, hidden, mask):
        q, k, v = self.split(self.query(hidden)), self.split(self.key(hidden)), self.split(self.value(hidden))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1))
        probs = self.dropout(F.softmax(scores + mask, dim=-1))
        context = torch.matmul(probs, v).permute(0, 2, 1, 3).contiguous().view(hidden.size())
        hidden = self.attention_norm(hidden + self.dropout(self.output(context)))
        return self.output_norm(hidden + self.dropout(self.dense(F.gelu(self.intermediate(hidden)))))


class _Bert(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        config = SimpleNamespace(vocab_size=12, hidden_size=4, heads=2, max_position=8, dropout=dropout)
        self.embeddings = _BertEmbeddings(config)
        self.encoder = nn.ModuleList([_BertLayer(config)])
        self.pooler = nn.Linear(4, 4)

    def forward(self, input_ids, attention_mask):
        extended = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        hidden = self.embeddings(input_ids)
        for layer in self.encoder:
            hidden = layer(hidden, extended)
        return SimpleNamespace(last_hidden_state=hidden, pooler_output=torch.tanh(self.pooler(hidden[:, 0])))


@wild(SENTENCES, FLIPPED)
class BertFineTuning(L.LightningModule):
    def __init__(self, num_labels=2):
        super().__init__()
        self.save_hyperparameters()
        self.bert = _Bert()
        self.classifier = nn.Linear(4, num_labels)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=num_labels)

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.classifier(self.bert(input_ids, attention_mask).pooler_output)
        loss = None
        if labels is not None:
            loss = nn.CrossEntropyLoss()(logits.view(-1, self.hparams.num_labels), labels.view(-1))
        return SimpleNamespace(loss=loss, logits=logits)

    def training_step(self, batch, batch_idx):
        input_ids, attention_mask, labels = batch
        outputs = self(input_ids, attention_mask=attention_mask, labels=labels)
        self.accuracy(outputs.logits.argmax(-1), labels)
        self.log("train_acc", self.accuracy)
        return outputs.loss

    def configure_optimizers(self):
        no_decay = ["bias", "LayerNorm.weight", "norm.weight"]
        groups = [
            {
                "params": [p for n, p in self.named_parameters() if not any(nd in n for nd in no_decay)],
                "weight_decay": 0.01,
            },
            {"params": [p for n, p in self.named_parameters() if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, eps=1e-6)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@wild(SENTENCES, FLIPPED)
class BertWithDropout(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.bert = _Bert(dropout=0.1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        input_ids, attention_mask, labels = batch
        pooled = self.dropout(self.bert(input_ids, attention_mask).pooler_output)
        return F.cross_entropy(self.classifier(pooled), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


@wild(SENTENCES, FLIPPED, outputs_of("bert"), quick=True)
class FrozenBertHead(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.bert = _Bert()
        for param in self.bert.parameters():
            param.requires_grad = False
        self.head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))

    def training_step(self, batch, batch_idx):
        input_ids, attention_mask, labels = batch
        with torch.no_grad():
            cls = self.bert(input_ids, attention_mask).last_hidden_state[:, 0]
        return F.cross_entropy(self.head(cls), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-3)


class _LoRALinear(nn.Module):
    def __init__(self, base, r=2, alpha=4):
        super().__init__()
        self.base, self.scaling = base, alpha / r
        self.base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(r, base.in_features) * 0.1)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * self.scaling


@wild(SENTENCES, FLIPPED, outputs_of("bert.embeddings"))
class LoRAFineTuning(L.LightningModule):
    """Low-rank updates of queries and values in a frozen encoder."""

    def __init__(self):
        super().__init__()
        self.bert = _Bert()
        self.bert.requires_grad_(False)
        for layer in self.bert.encoder:
            layer.query, layer.value = _LoRALinear(layer.query), _LoRALinear(layer.value)
        self.classifier = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        input_ids, attention_mask, labels = batch
        logits = self.classifier(self.bert(input_ids, attention_mask).last_hidden_state.mean(1))
        return F.cross_entropy(logits, labels)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@wild(rows(tokens=classes(10, 5), mask=lengths(5), y=classes(3)), FLIPPED)
class PaddedTransformer(L.LightningModule):
    """torch's encoder with a mask of padded positions, and a masked mean."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, padding_idx=0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.fc = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        tokens, mask, y = batch
        hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        return F.cross_entropy(self.fc(pooled), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(tokens=classes(10, 5), y=classes(3)), FLIPPED)
class SequenceFirstTransformer(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.positions = nn.Parameter(torch.zeros(5, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        tokens, y = batch
        x = self.embedding(tokens).transpose(0, 1) + self.positions
        attended, _ = self.attention(x, x, x, need_weights=False)
        x = self.norm(x + attended)
        return F.cross_entropy(self.fc(x.mean(dim=0)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(tokens=classes(20, 6), mask=lengths(6), y=classes(3)), FLIPPED)
class FastText(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(20, 4, padding_idx=0)
        self.fc = nn.Linear(4, 3)

    def forward(self, tokens, mask):
        x = self.embeddings(tokens) * mask.unsqueeze(-1)
        return self.fc(x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1))

    def training_step(self, batch, batch_idx):
        tokens, mask, y = batch
        logits = self(tokens, mask)
        loss = F.cross_entropy(logits, y)
        self.log("acc", (logits.argmax(dim=1) == y).float().mean().item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _CausalBlock(nn.Module):
    def __init__(self, d, heads, block_size):
        super().__init__()
        self.n_head = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.mlp(self.ln_2(x))


@wild(rows(tokens=classes(8, 4), y=classes(8, 4)), FLIPPED)
class SmallGPT(L.LightningModule):
    """A causal language model with tied embeddings."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(8, 4), nn.Embedding(4, 4)
        self.block = _CausalBlock(4, 2, 4)
        self.ln_f = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 8, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx):
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        return self.lm_head(self.ln_f(self.block(self.wte(idx) + self.wpe(pos))))

    def training_step(self, batch, batch_idx):
        idx, targets = batch
        logits = self(idx)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4, betas=(0.9, 0.95))


@wild(rows(x=floats(4, 3), y=tags(3, 4)), MOVED)
class TokenTagger(L.LightningModule):
    """Tags of tokens from given vectors; positions that count for nothing have the label -100."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.tagger = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        x, labels = batch
        logits = self.tagger(self.lstm(x)[0])
        return F.cross_entropy(logits.view(-1, 3), labels.view(-1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(a=classes(9, 4), b=classes(9, 4), y=floats(scale=0.3)), SHIFTED)
class SentencePairs(L.LightningModule):
    """Two sentences through one encoder, compared by their cosine."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Tanh())

    def training_step(self, batch, batch_idx):
        a, b, score = batch
        u, v = self.encoder(a).mean(1), self.encoder(b).mean(1)
        return F.mse_loss(F.cosine_similarity(u, v), score)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(tokens=classes(10, 6), y=bits()), FLIPPED)
class TextCNN(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.convs = nn.ModuleList([nn.Conv1d(4, 3, kernel_size=k) for k in (2, 3)])
        self.fc = nn.Linear(6, 1)

    def training_step(self, batch, batch_idx):
        tokens, y = batch
        x = self.embedding(tokens).permute(0, 2, 1)
        pooled = [F.relu(conv(x)).max(dim=2).values for conv in self.convs]
        prob = torch.sigmoid(self.fc(torch.cat(pooled, dim=1))).squeeze(1)
        return F.binary_cross_entropy(prob, y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(tokens=classes(10, 6), mask=lengths(6), y=classes(2)), FLIPPED)
class AttentionPooling(L.LightningModule):
    """A GRU, and a softmax over its positions that leaves out padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 3)
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.attention, self.fc = nn.Linear(4, 1), nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        tokens, mask, y = batch
        out, _ = self.gru(self.embedding(tokens))
        scores = self.attention(torch.tanh(out)).squeeze(-1).masked_fill(mask == 0, -1e9)
        weights = torch.softmax(scores, dim=1).unsqueeze(1)
        context = torch.bmm(weights, out).squeeze(1)
        return F.cross_entropy(self.fc(context), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(SENTENCES, FLIPPED)
class SoftPrompts(L.LightningModule):
    """Trained vectors in front of a frozen encoder."""

    def __init__(self, n_prompts=2):
        super().__init__()
        self.embedding = nn.Embedding(12, 4).requires_grad_(False)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).requires_grad_(False)
        self.prompt = nn.Parameter(0.1 * torch.randn(n_prompts, 4))
        self.verbalizer = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        input_ids, _, labels = batch
        prompts = self.prompt.unsqueeze(0).repeat(input_ids.size(0), 1, 1)
        hidden = self.encoder(torch.cat([prompts, self.embedding(input_ids)], dim=1))
        return F.cross_entropy(self.verbalizer(hidden[:, 0]), labels)

    def configure_optimizers(self):
        return torch.optim.Adam([self.prompt, *self.verbalizer.parameters()], lr=1e-3)


@wild(
    SENTENCES,
    FLIPPED,
    refused=Refusal("state carried from batch to batch", "the same in every run", late=True),
)
class StatefulLanguageModel(L.LightningModule):
    """Carries the hidden state of one batch to the next."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 3)
        self.rnn = nn.GRUCell(3, 4)
        self.fc = nn.Linear(4, 2)
        self.hidden = None

    def training_step(self, batch, batch_idx):
        input_ids, _, labels = batch
        if self.hidden is None:
            self.hidden = torch.zeros(input_ids.size(0), 4)
        hidden = self.rnn(self.embedding(input_ids[:, 0]), self.hidden)
        self.hidden = hidden.detach()
        return F.cross_entropy(self.fc(hidden), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)
