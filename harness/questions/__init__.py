"""Questions to the segments of EPIC-Kitchens-100: made, masked, checked, and audited.

    rows       what is asked about: segments with their verb and noun, true or predicted
    template   questions without a language model      prompts    what a language model is told
    chat       a server that speaks OpenAI's protocol  local      a model of `transformers`
    journal    every answer, on disk as it comes       writers    a row -> two questions, by either
    lexicon    all forms of a class's words            masking    which words of a question hide
    checks     what may still be wrong with one        build      all of it, to one file of records
    predicted  rows from a model's predictions         audit      what the text alone gives away

Source: paper sec. 3.1 and Figure 2, which show the purpose of the two prompts and neither wording.
"""
