-- mixed_language
-- Purpose     Drop replies that mix scripts: letters that are not of the prompt's language or, where that is unknown,
--             not of the script that most of the reply is in. Formulas, code and Greek do not count. Observed is the
--             share of foreign letters; of Latin ones where only these are too many.
-- Inputs      stg_features (response_id, latin_chars, cyrillic_chars, arabic_chars, han_chars, kana_chars,
--             hangul_chars, other_chars), stg_responses (response_id, prompt_id), stg_prompts (prompt_id, language)
-- Output      one row per violating response: response_id, observed, threshold
-- Parameters  max_foreign_share: letters of foreign scripts but Latin over all letters, default 0.002
--             max_latin_share: Latin letters over all letters where Latin is foreign, default 0.3
-- Source      arXiv:2501.12948 section 2.3.3: chains of thought with mixed languages are dropped; the numbers are
--             ours. Languages of one script are not told apart; what a prompt asks for in words is not known
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/rules/mixed_language.sql
with
params as (
    select
        coalesce(getvariable('max_foreign_share'), 0.002)::double as max_foreign_share,
        coalesce(getvariable('max_latin_share'), 0.3)::double as max_latin_share
),

languages as (
    select
        stg_responses.response_id,
        split_part(lower(stg_prompts.language), '-', 1) as language
    from stg_responses
    join stg_prompts on stg_prompts.prompt_id = stg_responses.prompt_id
),

letters as (
    select
        response_id,
        latin_chars as latin,
        cyrillic_chars as cyrillic,
        arabic_chars as arabic,
        other_chars as other,
        han_chars as chinese,
        -- Japanese and Korean write Han as well, but never nine tenths of it.
        kana_chars + if(kana_chars * 10 >= han_chars, han_chars, 0) as japanese,
        hangul_chars + if(hangul_chars * 10 >= han_chars, han_chars, 0) as korean,
        greatest(cyrillic, arabic, other, chinese, japanese, korean) as most,
        latin_chars + cyrillic_chars + arabic_chars + other_chars + han_chars + kana_chars + hangul_chars as every
    from stg_features
),

scripts as (
    select
        letters.*,
        case
            when languages.language in ('en', 'de', 'fr', 'es', 'it', 'pt', 'nl', 'pl', 'tr', 'vi', 'id') then 'latin'
            when languages.language in ('ru', 'uk', 'bg', 'be') then 'cyrillic'
            when languages.language in ('ar', 'fa', 'ur') then 'arabic'
            when languages.language = 'zh' then 'chinese'
            when languages.language = 'ja' then 'japanese'
            when languages.language = 'ko' then 'korean'
            when letters.latin >= letters.most then 'latin'
            else 'most'
        end as script
    from letters
    left join languages on languages.response_id = letters.response_id
),

shares as (
    select
        response_id,
        case script
            when 'latin' then every - latin
            when 'cyrillic' then every - latin - cyrillic
            when 'arabic' then every - latin - arabic
            when 'chinese' then every - latin - chinese
            when 'japanese' then every - latin - japanese
            when 'korean' then every - latin - korean
            else every - latin - most
        end / nullif(every, 0) as foreign_share,
        if(script = 'latin', 0, latin) / nullif(every, 0) as latin_share
    from scripts
),

violations as (
    select
        shares.response_id,
        if(shares.foreign_share > params.max_foreign_share, shares.foreign_share, shares.latin_share) as observed,
        if(shares.foreign_share > params.max_foreign_share, params.max_foreign_share, params.max_latin_share)
            as threshold
    from shares
    cross join params
    where shares.foreign_share > params.max_foreign_share or shares.latin_share > params.max_latin_share
)

select * from violations;
