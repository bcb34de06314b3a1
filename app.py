"""The app's front door, and its Overview page. Start it with ``streamlit run app.py``."""

import streamlit as st

from bidir_ui import shell
from bidir_ui.server import MIDDLEWARE

app = st.App(__file__, middleware=MIDDLEWARE)


def overview() -> None:
    page = shell.start("overview")
    st.title("Overview", anchor=False)
    with shell.guard():
        st.text(str(page.pair)[:300])


if shell.in_session():
    overview()
