"""People and credits for the development copy of `fltr_auth`. In production the web application makes them.

Belongs here: what needs the administrator's rights in that copy. Does not: anything of the pipeline's normal work.
"""

import uuid

from fltr_pipeline.errors import InvalidAmount
from fltr_pipeline.stores.schema.connection import transaction

INT4_MAX = 2**31 - 1

# The web application keeps UTC in columns without zone: say so, whatever the session's zone. Unique on email.
ADD_USER = """
INSERT INTO users (id, name, email, email_verified, created_at, updated_at)
VALUES (%(id)s, %(name)s, %(email)s, true, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')
ON CONFLICT (email) DO NOTHING
RETURNING id::text
"""

USER_BY_EMAIL = "SELECT id::text FROM users WHERE email = %(email)s"

ADD_BALANCE = """
INSERT INTO user_credits (user_id, credits, created_at, updated_at)
VALUES (%(id)s, %(credits)s, now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')
"""

ADD_BONUS = """
INSERT INTO credit_transactions (id, user_id, amount, type, operation, created_at)
VALUES (%(transaction)s, %(id)s, %(credits)s, 'bonus', 'grant', now() AT TIME ZONE 'UTC')
"""


def add_user(admin_url: str, email: str, name: str, credits: int) -> str:
    """Adds a user with a balance, and the ledger row that explains it, and returns the user's id.

    A known e-mail address changes nothing and returns the id it has.

    Raises:
        InvalidAmount: credits below 0 or beyond int4.
        StoreUnavailable: the database does not answer.
    """
    if not 0 <= credits <= INT4_MAX:
        raise InvalidAmount(f"a user can't start with {credits} credits: from 0 to {INT4_MAX}")
    user_id = str(uuid.uuid4())
    row = {
        "id": user_id,
        "transaction": str(uuid.uuid4()),
        "name": name,
        "email": email.strip().lower(),
        "credits": credits,
    }
    with transaction(admin_url) as connection:
        if connection.execute(ADD_USER, row).fetchone() is None:
            return str(connection.execute(USER_BY_EMAIL, row).fetchall()[0][0])
        connection.execute(ADD_BALANCE, row)
        if credits:
            connection.execute(ADD_BONUS, row)
    return user_id
