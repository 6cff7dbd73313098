"""Everything that this package refuses: one message each, what happened, why it matters, what to do."""


class TrainerError(Exception):
    exit_code = 1


class RecipeError(TrainerError):  # the recipe, an override or an option names something that does not exist
    exit_code = 2


class ReleaseError(TrainerError): ...  # the dataset is not the release that its manifest describes


class ModelError(TrainerError): ...  # the model or its tokenizer cannot be trained as asked


class RenderError(TrainerError): ...  # rows cannot become the tokens that inference would see


class StageError(TrainerError): ...  # a stage cannot be trained, or --output holds other work
