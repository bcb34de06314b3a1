"""What the app's pages share. Reads run folders through bidir_core; never computes."""

import logging

# The server imports app.py once before it runs, and Streamlit would warn of every cache then.
logging.getLogger("streamlit.runtime.caching.cache_data_api").addFilter(
    lambda record: "No runtime found" not in record.getMessage()
)
