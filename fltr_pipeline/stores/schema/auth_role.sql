-- The least-privilege role under which the pipeline works in `fltr_auth`. Run by an administrator in that database; safe to repeat.
--
--   psql "$ADMIN_URL" -1 -f auth_role.sql
--   PGOPTIONS="-c fltr.role_password=..." psql "$ADMIN_URL" -1 -f auth_role.sql
--
-- The password may be a SCRAM verifier. Without one the role keeps what it has: none, for servers that trust local connections.
-- What is not granted here is taken away, should it have been granted to the role before. What it has in other ways is refused (attributes,
-- memberships) or warned of (what everybody may do).

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'fltr_pipeline') THEN
        CREATE ROLE fltr_pipeline LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
EXCEPTION
    -- Roles belong to the whole server: another database's set-up was faster.
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'fltr_pipeline'
               AND (r.rolsuper OR r.rolcreatedb OR r.rolcreaterole OR r.rolreplication OR r.rolbypassrls
                    OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid))) THEN
        RAISE EXCEPTION 'role fltr_pipeline has attributes or memberships that it should not have; nothing was granted'
            USING HINT = 'ALTER ROLE fltr_pipeline NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS, '
                         'and REVOKE the roles that it is a member of; or drop it, and run this again.';
    END IF;
END
$$;

DO $$
BEGIN
    IF current_setting('fltr.role_password', true) <> '' THEN
        EXECUTE format('ALTER ROLE fltr_pipeline PASSWORD %L', current_setting('fltr.role_password'));
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO fltr_pipeline', current_database());
END
$$;

REVOKE ALL ON SCHEMA public FROM fltr_pipeline;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM fltr_pipeline;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM fltr_pipeline;

GRANT USAGE ON SCHEMA public TO fltr_pipeline;

-- Who pays. An e-mail address finds its user; nothing else about a person is the pipeline's business.
GRANT SELECT (id, email) ON public.users TO fltr_pipeline;

-- The pots. A balance moves by `credits = credits - n`; what was purchased is the web application's to count.
GRANT SELECT (id, name, owner_id, credits, updated_at) ON public.teams TO fltr_pipeline;
GRANT SELECT ON public.user_credits, public.api_key_credits TO fltr_pipeline;
GRANT UPDATE (credits, updated_at) ON public.teams, public.user_credits, public.api_key_credits TO fltr_pipeline;

-- The ledger is append-only: no UPDATE, no DELETE.
GRANT SELECT, INSERT ON public.credit_transactions TO fltr_pipeline;

-- Before PostgreSQL 15 everybody could make tables in `public`, and a database that was brought forward still lets them.
DO $$
BEGIN
    IF has_schema_privilege('fltr_pipeline', 'public', 'CREATE') THEN
        RAISE WARNING 'fltr_pipeline can make tables in schema public, as everybody can'
            USING HINT = 'REVOKE CREATE ON SCHEMA public FROM PUBLIC, and GRANT it to the roles that need it.';
    END IF;
END
$$;
