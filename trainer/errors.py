"""Everything that this package refuses.

TrainerError          one message: what happened, why it matters, what to do
├── RecipeError       the recipe, an override or an option names something that does not exist
├── ReleaseError      the dataset is not the release that its manifest describes
├── ModelError        the model or its tokenizer cannot be trained as asked
├── RenderError       rows cannot become the tokens that inference would see
└── StageError        a stage cannot be trained, or --output holds other work
"""


class TrainerError(Exception):
    exit_code = 1


class RecipeError(TrainerError):
    exit_code = 2


class ReleaseError(TrainerError): ...


class ModelError(TrainerError): ...


class RenderError(TrainerError): ...


class StageError(TrainerError): ...
