CREATE TABLE studies (study TEXT PRIMARY KEY, instances INTEGER NOT NULL);
CREATE TABLE instances (
    sop TEXT PRIMARY KEY, study TEXT, series TEXT, patient TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('wanted', 'there', 'refused')), code TEXT, tries INTEGER NOT NULL DEFAULT 0);
CREATE INDEX instances_by_state ON instances (state);
CREATE INDEX instances_by_patient ON instances (patient);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO instances VALUES ('1.2.3', '1.2', '1.2.1', 'PAT-0001', 'there', NULL, 0);
