"""Views of a posterior; each is imported on first use, as are the packages it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..viewer.viewable import Viewable
from .equivalence_classes import Equivalent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..viewer.frame import Viewer
    from ..viewer.genealogy import Answer, Describe


class PosteriorViews:
    """Figures, a page for the browser, and tables of a :class:`ParticlePosterior`."""

    def to_html(
        self: Viewable,
        path: str | Path,
        *,
        title: str | None = None,
        describe: Describe | None = None,
        answer: Answer | None = None,
        equivalent: Equivalent | None = None,
    ) -> Path:
        """Write one HTML file that shows every particle at every step, dead branches included, and opens without a network.

        Problems of a plate, islands and iterations of a chain are chosen from a list; at most 100 of them are written, of a chain the last.

        :param str title: at the top of the page.
        :param describe: ``describe(name, value)`` gives the text of a latent site's value ``[*event]``. By default an object in the model's
            return value with a method ``describe(value)`` does, such as a ``Context``, which decodes steps.
        :param answer: ``answer(particle)`` reduces what the model returned for a particle to what particles agree or differ in. By default
            the method ``answers()`` of the return value, if it has one.
        :param equivalent: pools answers that count as the same, as in :meth:`ParticlePosterior.answers`.
        :returns: the path.
        :raises OSError: if the file cannot be written.
        :raises ValueError: for more particles times steps than can be drawn one by one.
        """
        from ..viewer.page import page

        path = Path(path)
        path.write_text(page(self, title=title, describe=describe, answer=answer, equivalent=equivalent), encoding="utf-8")
        return path

    def viewer(self: Viewable, height: int = 720, **kwargs: Any) -> Viewer:
        """The page of :meth:`to_html` inside a notebook's output; it is saved with the notebook.

        :param int height: in pixels.
        :param kwargs: as for :meth:`to_html`.
        """
        from ..viewer.frame import Viewer
        from ..viewer.page import page

        return Viewer(page(self, **kwargs), height)

    def explain(
        self: Viewable,
        *,
        describe: Describe | None = None,
        answer: Answer | None = None,
        equivalent: Equivalent | None = None,
    ) -> Any:
        """Why this answer: which compete, where their solutions part, which steps the reward disliked, how sure the posterior is, and what
        would change it. ``print(posterior.explain())`` says it in words; the figures are attributes.

        It follows from what the posterior holds, so that it is the same whenever it is asked for. A standard error is that of Chan & Lai
        (2013), which takes particles with a common ancestor as one; of a chain it is by batch means. What a posterior cannot tell, such as
        a probability under the votes of a search, is said to be unknown.

        :param describe: as for :meth:`to_html`.
        :param answer: as for :meth:`to_html`.
        :param equivalent: as for :meth:`to_html`.
        :returns: an :class:`~ppl_llm.inference.viewer.explanation.Explanation`; with independent plates, nested lists of them.
        :raises TypeError: if the model's return value has no ``answers()`` and no ``answer`` was given.
        """
        from ..viewer.explain import explain

        shape = tuple(self.log_weights.shape[1:])

        def of(plate: tuple[int, ...]) -> Any:
            if len(plate) == len(shape):
                return explain(self, plate, describe=describe, answer=answer, equivalent=equivalent)
            return [of((*plate, i)) for i in range(shape[len(plate)])]

        return of(())

    def _repr_html_(self: Viewable) -> str:
        from ..viewer.summary import summary

        return summary(self)

    def plot_genealogy(
        self: Viewable,
        plate: int | tuple[int, ...] | None = None,
        *,
        answer: Answer | None = None,
        equivalent: Equivalent | None = None,
        ax: Axes | None = None,
    ) -> Figure:
        """Lines of descent, coloured by answer, over the strips of ESS and evidence. Particles are ordered so that no two lines cross.

        :param plate: index of the problem, for a posterior with independent plates.
        :param answer: as for :meth:`to_html`.
        :param equivalent: as for :meth:`to_html`.
        :param ax: draw the lines of descent here, without the strips.
        :raises ValueError: if the posterior has several genealogies and none was named.
        :raises ImportError: without matplotlib.
        """
        from ..viewer import plots

        return plots.genealogy(self, plate, answer, equivalent, ax)

    def plot_answers(
        self: Viewable,
        plate: int | tuple[int, ...] | None = None,
        *,
        answer: Answer | None = None,
        equivalent: Equivalent | None = None,
        top: int = 10,
        ax: Axes | None = None,
    ) -> Figure:
        """The most probable answers as bars; arguments as for :meth:`plot_genealogy`.

        :param int top: answers shown.
        :raises TypeError: if the model's return value has no ``answers()`` and no ``answer`` was given.
        """
        from ..viewer import plots

        return plots.answers(self, plate, answer, equivalent, top, ax)

    def plot_ess(self: Viewable, *, ax: Axes | None = None) -> Figure:
        """Effective sample size before each barrier, a line for each problem and island; dots where it was resampled."""
        from ..viewer import plots

        return plots.ess(self, ax)

    def plot_evidence(self: Viewable, *, ax: Axes | None = None) -> Figure:
        """Estimate of the log evidence up to each barrier, a line for each problem and island.

        :raises ValueError: if the algorithm gives none.
        """
        from ..viewer import plots

        return plots.evidence(self, ax)

    def to_dataframe(
        self: Viewable,
        *,
        steps: bool = False,
        describe: Describe | None = None,
        answer: Answer | None = None,
        equivalent: Equivalent | None = None,
    ) -> Any:
        """A pandas ``DataFrame`` with a row per particle, or per particle and step.

        A row of a particle has its place (``problem``, ``island``, ``iteration``), ``weight`` (normalised in its population),
        ``log_weight``, ``answer``, ``length`` and ``log_likelihood``, one column for each scalar site, ``log_prob[site]`` where they were
        recorded, and ``score[site]``.

        :param bool steps: the whole genealogy instead, dead branches included: a row for each particle at each step with its ``parent``,
            ``weight``, ``log_factor``, ``score``, ``text``, ``offspring`` among the particles of the posterior, and ``ess``,
            ``resampled`` and ``log_evidence`` of its population.
        :param describe: as for :meth:`to_html`.
        :param answer: as for :meth:`to_html`.
        :param equivalent: as for :meth:`to_html`.
        :raises ImportError: without pandas.
        """
        from ..viewer import frames

        if steps:
            return frames.genealogy(self, describe, answer, equivalent)
        return frames.particles(self, answer, equivalent)

    def to_arviz(self: Viewable, *, resample: bool = True) -> Any:
        """ArviZ ``InferenceData``: one chain of draws of all sites, plates of the model as dimensions.

        The iterations of a chain give a draw each, so that autocorrelation and effective sample sizes are those of the chain. All others
        give draws by weight (systematic resampling with Pyro's generator), since ArviZ counts all draws alike.

        :param bool resample: ``False`` keeps the weighted particles as they are, with ``log_weight`` among the sample statistics.
        :raises ImportError: without arviz.
        :raises ValueError: for arguments that do not go together.
        """
        from ..viewer import draws

        return draws.inference_data(self, resample)
