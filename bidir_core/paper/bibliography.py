"""The works that a paper's texts cite, as BibTeX; only those that it does cite are written.

Fields that are not certain are left out rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
