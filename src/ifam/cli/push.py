"""`ifam push`."""


def push(
    model: str,
    repo: str,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload an ifam model",
    card_only: bool = False,
    overwrite: bool = False,
) -> None:
    """Upload a model to the Hugging Face hub, with a card that shows the figures of the results beside it.

    `README.md` in the folder is the card; without one, it is made from the results of evaluate, audit, calibrate and
    certify. Credentials are those of `hf auth login`.

    Args:
        model: Folder of the model.
        repo: Id `owner/name` on the hub; made if need be.
        license: License of the weights, as the hub names it, such as apache-2.0.
        private: Make a new repository private.
        revision: Branch to upload to; made if need be.
        message: Message of the commit.
        card_only: Write the card to `README.md` in the folder, to be read and edited, and upload nothing.
        overwrite: With `card_only`: replace a card that is there.
    """
    from ifam.publishing import push_to_hub, write_card

    if card_only:
        path = write_card(model, repo, license=license, overwrite=overwrite)
        print(f"The card is in {path}: read it, edit it, and upload it with `ifam push {model} {repo}`.")
        return
    address = push_to_hub(model, repo, license=license, private=private, revision=revision, message=message)
    print(f"The model is at {address}.")
