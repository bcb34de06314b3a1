"""SentencePiece's BPE written down slowly, to hold a fast tokenizer against.

Independent of the product: no merges, no ranks, only scores. (Kudo and Richardson, SentencePiece,
2018; the rules are those of its ``bpe_model.cc``: user-defined pieces stay whole, of the joint
pieces of neighbours the best scored one is made first, leftmost on a tie, and what is no piece
becomes bytes.)
"""

from collections.abc import Sequence

NORMAL, USER_DEFINED = 1, 4


class SlowBpe:
    """Encodes as SentencePiece would, in time quadratic in the text's length."""

    def __init__(self, tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]):
        self.ids = {token: index for index, token in enumerate(tokens)}
        rows = list(zip(tokens, scores, kinds, strict=True))
        self.scores = {token: score for token, score, kind in rows if kind == NORMAL}
        whole = [token for token, _, kind in rows if kind == USER_DEFINED]
        self.whole = sorted(whole, key=len, reverse=True)  # the longest that fits

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        start = at = 0
        while at < len(text):
            piece = next((one for one in self.whole if text.startswith(one, at)), None)
            if piece is None:
                at += 1
                continue
            ids += [*self._join(text[start:at]), self.ids[piece]]
            start = at = at + len(piece)
        return ids + self._join(text[start:])

    def _join(self, text: str) -> list[int]:
        parts = list(text.replace(" ", "\u2581"))
        while True:
            best, where = None, -1
            for index in range(len(parts) - 1):
                score = self.scores.get(parts[index] + parts[index + 1])
                if score is not None and (best is None or score > best):
                    best, where = score, index
            if best is None:
                break
            parts[where : where + 2] = [parts[where] + parts[where + 1]]
        ids = []
        for part in parts:
            if part in self.scores:
                ids.append(self.ids[part])
            else:
                ids += [self.ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        return ids
