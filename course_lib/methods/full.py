"""The two ends of the scale: everything moves, or nothing but the head on top."""

from course_lib.methods import METHODS, Method, Paper
from course_lib.methods.shapes import parameter_shapes, size

METHODS.add(
    Method(
        name="full",
        title="Full fine-tuning",
        family="full",
        paper=Paper("Universal Language Model Fine-tuning for Text Classification", "1801.06146"),
        formula=r"\theta = \theta_0 + \Delta\theta",
        words="everything moves",
        mergeable=True,
        lesson="01_full_vs_feature_based",
        build=lambda model: model.requires_grad_(True),
        counter=lambda config: sum(map(size, parameter_shapes(config).values())),
    )
)
METHODS.add(
    Method(
        name="feature_based",
        title="Feature-based",
        family="selective",
        paper=Paper("To Tune or Not to Tune? Adapting Pretrained Representations to Diverse Tasks", "1903.05987"),
        formula=r"y = \mathrm{head}_\phi\,(f_{\theta_0}(x))",
        words="a new head reads the frozen model's output",
        mergeable=True,
        lesson="01_full_vs_feature_based",
        build=lambda model: model.requires_grad_(False),
        counter=lambda config: 0,
    )
)
