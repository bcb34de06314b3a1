"""Text and numbers as LaTeX, and tables in booktabs style.

Names of models, tasks, runs and files come from outside: everything goes through :func:`escape`,
so that no text can start a command, and a character that pdfLaTeX cannot set is written as its
code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_COMMANDS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "^": r"\textasciicircum{}", "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "`": r"\textasciigrave{}",
}  # fmt: skip

# Two of them would be set as a longer dash.
_LIGATURES = re.compile(r"(?<=-)(?=-)")


def escape(text: object) -> str:
    """Text from outside as one line of inert LaTeX."""
    return prose(" ".join(str(text).split()))


def prose(text: str) -> str:
    """As :func:`escape`, with the blanks at both ends kept: a part of a sentence."""
    return _LIGATURES.sub("{}", "".join(map(_character, text)))


def _character(one: str) -> str:
    if one in _COMMANDS:
        return _COMMANDS[one]
    if " " <= one <= "~":
        return one
    letter = "À" <= one <= "ÿ" and unicodedata.category(one).startswith("L")
    return one if letter else f"[U+{ord(one):04X}]"


def code(text: object) -> str:
    """Text from outside in typewriter, which may break after a separator."""
    return r"\texttt{" + re.sub(r"(\\_|[/:,=-])(?=.)", r"\1\\allowbreak{}", escape(text)) + "}"


def number(text: str) -> str:
    """A printed number: ``-4.7`` gets a true minus, ``51.8 %`` a thin space, ``<`` its math."""
    shown = text.replace(" %", r"\,\%").replace("%", r"\%").replace(r"\\%", r"\%")
    return re.sub(r"^([+<-])", r"$\1$", shown)


def wrapped(centimetres: float) -> str:
    """A column whose text wraps, ragged (package array)."""
    return f">{{\\raggedright\\arraybackslash}}p{{{centimetres:g}cm}}"


@dataclass
class Tabular:
    """Rows of LaTeX cells under a header, as one booktabs table; a row may be a heading alone.

    ``columns`` is the column specification, one letter or :func:`wrapped` a column. ``long``
    tables (package longtable) run over pages.
    """

    key: str
    caption: str
    columns: Sequence[str]
    header: Sequence[str]
    long: bool = False
    rows: list[Sequence[str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def add(self, *cells: object) -> None:
        self.rows.append([str(cell) for cell in cells])

    def heading(self, text: object) -> None:
        """A line over the whole width, before the rows that it names."""
        self.rows.append([str(text)])

    def tex(self) -> str:
        spec = "@{}" + "".join(self.columns) + "@{}"
        header = " & ".join(self.header) + r" \\"
        body = "\n".join(self._lines())
        caption = f"\\caption{{{self.caption}}}\\label{{tab:{self.key}}}"
        if self.long:
            return "\n".join([
                r"\begingroup\footnotesize\setlength{\tabcolsep}{3.5pt}",
                r"\setlength{\LTcapwidth}{\linewidth}",
                f"\\begin{{longtable}}{{{spec}}}", caption + r" \\", r"\toprule", header,
                r"\midrule", r"\endfirsthead", r"\toprule", header, r"\midrule", r"\endhead",
                r"\bottomrule", r"\endfoot", body, r"\end{longtable}", r"\endgroup",
            ])  # fmt: skip
        return "\n".join([
            r"\begin{table}[htbp]", r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}",
            r"\setlength{\belowcaptionskip}{6pt}", caption,
            f"\\begin{{tabular}}{{{spec}}}", r"\toprule", header, r"\midrule", body,
            r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ])  # fmt: skip

    def _lines(self) -> list[str]:
        lines = []
        for i, row in enumerate(self.rows):
            if len(row) == 1:
                lines += [r"\addlinespace"] if i else []
                lines.append(f"\\multicolumn{{{len(self.columns)}}}{{@{{}}l}}{{{row[0]}}} \\\\*")
            else:
                lines.append(" & ".join(row) + r" \\")
        return lines


# The works that a paper's texts cite, as BibTeX; only those that it does cite are written.

TASKS = {
    "hellaswag": ("HellaSwag", "hellaswag"),
    "piqa": ("PIQA", "piqa"),
    "arc_easy": ("ARC-Easy", "arc"),
    "arc_challenge": ("ARC-Challenge", "arc"),
    "winogrande": ("WinoGrande", "winogrande"),
}

_ENTRIES = r"""
@misc{lmeval,
  author = {Gao, Leo and Tow, Jonathan and Abbasi, Baber and Biderman, Stella and Black, Sid and
            DiPofi, Anthony and Foster, Charles and Golding, Laurence and Hsu, Jeffrey and
            Le Noac'h, Alain and Li, Haonan and McDonell, Kyle and Muennighoff, Niklas and
            Ociepa, Chris and Phang, Jason and Reynolds, Laria and Schoelkopf, Hailey and
            Skowron, Aviya and Sutawika, Lintang and Tang, Eric and Thite, Anish and Wang, Ben and
            Wang, Kevin and Zou, Andy},
  title = {The Language Model Evaluation Harness},
  publisher = {Zenodo},
  year = {2024},
  doi = {10.5281/zenodo.12608602},
}

@inproceedings{transformers,
  author = {Wolf, Thomas and Debut, Lysandre and Sanh, Victor and Chaumond, Julien and
            Delangue, Clement and Moi, Anthony and Cistac, Pierric and Rault, Tim and
            Louf, R{\'e}mi and Funtowicz, Morgan and others},
  title = {Transformers: State-of-the-Art Natural Language Processing},
  booktitle = {Proceedings of the 2020 Conference on Empirical Methods in Natural Language
               Processing: System Demonstrations},
  pages = {38--45},
  year = {2020},
}

@inproceedings{hellaswag,
  author = {Zellers, Rowan and Holtzman, Ari and Bisk, Yonatan and Farhadi, Ali and Choi, Yejin},
  title = {{HellaSwag}: Can a Machine Really Finish Your Sentence?},
  booktitle = {Proceedings of the 57th Annual Meeting of the Association for Computational
               Linguistics},
  pages = {4791--4800},
  year = {2019},
}

@inproceedings{piqa,
  author = {Bisk, Yonatan and Zellers, Rowan and Le Bras, Ronan and Gao, Jianfeng and
            Choi, Yejin},
  title = {{PIQA}: Reasoning about Physical Commonsense in Natural Language},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {34},
  year = {2020},
}

@misc{arc,
  author = {Clark, Peter and Cowhey, Isaac and Etzioni, Oren and Khot, Tushar and
            Sabharwal, Ashish and Schoenick, Carissa and Tafjord, Oyvind},
  title = {Think you have Solved Question Answering? {Try} {ARC}, the {AI2} Reasoning Challenge},
  howpublished = {arXiv:1803.05457},
  year = {2018},
}

@inproceedings{winogrande,
  author = {Sakaguchi, Keisuke and Le Bras, Ronan and Bhagavatula, Chandra and Choi, Yejin},
  title = {{WinoGrande}: An Adversarial {Winograd} Schema Challenge at Scale},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {34},
  year = {2020},
}

@misc{smollm2,
  author = {Ben Allal, Loubna and Lozhkov, Anton and Bakouch, Elie and others},
  title = {{SmolLM2}: {When Smol Goes Big} -- Data-Centric Training of a Small Language Model},
  howpublished = {arXiv:2502.02737},
  year = {2025},
}

@article{tango,
  author = {Tango, Toshiro},
  title = {Equivalence test and confidence interval for the difference in proportions for the
           paired-sample design},
  journal = {Statistics in Medicine},
  volume = {17},
  number = {8},
  pages = {891--908},
  year = {1998},
}

@article{mover,
  author = {Zou, G. Y. and Donner, Allan},
  title = {Construction of confidence limits about effect measures: A general approach},
  journal = {Statistics in Medicine},
  volume = {27},
  number = {10},
  pages = {1693--1702},
  year = {2008},
}

@article{mcnemar,
  author = {McNemar, Quinn},
  title = {Note on the sampling error of the difference between correlated proportions or
           percentages},
  journal = {Psychometrika},
  volume = {12},
  number = {2},
  pages = {153--157},
  year = {1947},
}

@article{holm,
  author = {Holm, Sture},
  title = {A simple sequentially rejective multiple test procedure},
  journal = {Scandinavian Journal of Statistics},
  volume = {6},
  number = {2},
  pages = {65--70},
  year = {1979},
}

@inproceedings{lora,
  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and
            Li, Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu},
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  booktitle = {International Conference on Learning Representations},
  year = {2022},
}

@inproceedings{adamw,
  author = {Loshchilov, Ilya and Hutter, Frank},
  title = {Decoupled Weight Decay Regularization},
  booktitle = {International Conference on Learning Representations},
  year = {2019},
}
"""

WORKS: dict[str, str] = {
    re.match(r"@\w+\{(\w+),", entry)[1]: entry  # type: ignore[index]
    for entry in _ENTRIES.strip().split("\n\n")
}


def cited(texts: Iterable[str]) -> list[str]:
    """The keys that these TeX texts cite, in the order of :data:`WORKS`."""
    found = {
        key.strip()
        for text in texts
        for group in re.findall(r"\\cite\{([^}]*)\}", text)
        for key in group.split(",")
    }
    return [key for key in WORKS if key in found]


def bibtex(keys: Iterable[str]) -> str:
    return "\n\n".join(WORKS[key] for key in keys) + "\n"
