"""The story of a plan as a page."""

from advisor.render.page import Page
from advisor.story import Story

COLOUR = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def render_story(story: Story, width: int | None = None) -> Page:
    """Chapter by chapter."""
    page = Page(width)
    page.line(story.verdict.capitalize(), fg=COLOUR[story.verdict], bold=True)
    for title, sentences in story.chapters.items():
        page.bullets(title, sentences)
    return page
